"""The errors that tell a user what to change; anything else that is raised is a defect of ours."""


class ConfigError(ValueError):
    """A config key cannot work; the message names key, value and what is allowed."""


class DatasetError(RuntimeError):
    """A data set, annotation or image cannot be used; the message names file and cure."""
