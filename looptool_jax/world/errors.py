"""The one error of the world."""


class WorldError(ValueError):
    """Something that does not belong to the procedural world; the message says what and where."""
