"""The database: engines, tables, migrations. What is asked of it is in `app/requests/`."""
