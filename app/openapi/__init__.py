"""What the service can do, for programs and for people: OpenAPI documents and Markdown pages.

All of it is generated: inputs from the registry of modes, routes from the routers.
"""
