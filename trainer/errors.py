"""What can go wrong in a training or a generation, other than a bug.

TrainingError
├── ModelError          the base model can't be used: wrong version, files missing
├── ConditionError      a condition that leaves nothing to generate or nothing given
├── CapacityError       it does not fit on this machine
├── DivergedError       loss or weights became NaN or Inf
├── CheckpointError     no checkpoint can be read (a damaged one falls back to the one before)
├── LoraFileError       a LoRA file can't be used: damaged, foreign, for another model
├── SampleError         a sample became NaN or Inf
├── SafetyError         the video must not be returned
└── ArtifactError       the finished LoRA failed its check
"""


class TrainingError(Exception):
    """Ends the job as failed. The message is for the user: cause, and what to change."""

    error_type = "training_failed"
    users_fault = False
    field: str | None = None
    """Of the request: what to change, where that is the user's to do and known."""


class ModelError(TrainingError):
    error_type = "model_unavailable"


class ConditionError(TrainingError):
    error_type = "invalid_condition"
    users_fault = True
    field = "training_data_url"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """``field`` where the clips of the training data are not to blame."""
        super().__init__(message)
        if field is not None:
            self.field = field


class CapacityError(TrainingError):
    error_type = "out_of_memory"


class DivergedError(TrainingError):
    error_type = "training_diverged"
    users_fault = True
    field = "learning_rate"


class CheckpointError(TrainingError):
    error_type = "checkpoint_unreadable"


class LoraFileError(TrainingError):
    error_type = "lora_file_invalid"
    users_fault = True
    field = "loras"


class SampleError(TrainingError):
    error_type = "sampling_failed"
    users_fault = True
    field = "loras"


class SafetyError(TrainingError):
    error_type = "content_policy_violation"
    users_fault = True
    field = "prompt"


class ArtifactError(TrainingError):
    error_type = "artifact_check_failed"
