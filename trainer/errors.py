"""What can go wrong in a training, other than a bug.

TrainingError
├── ModelError          the base model can't be used: wrong version, files missing
├── CapacityError       it does not fit on this machine
├── DivergedError       loss or weights became NaN or Inf
├── CheckpointError     no checkpoint can be read (a damaged one falls back to the one before)
└── ArtifactError       the finished LoRA failed its check
"""


class TrainingError(Exception):
    """Ends the job as failed. The message is for the user: cause, and what to change."""

    error_type = "training_failed"
    users_fault = False


class ModelError(TrainingError):
    error_type = "model_unavailable"


class CapacityError(TrainingError):
    error_type = "out_of_memory"


class DivergedError(TrainingError):
    error_type = "training_diverged"
    users_fault = True


class CheckpointError(TrainingError):
    error_type = "checkpoint_unreadable"


class ArtifactError(TrainingError):
    error_type = "artifact_check_failed"
