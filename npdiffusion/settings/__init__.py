"""Every setting of a picture and every option of a run: names, values, defaults, help.

    table.py   the settings of a picture: Request      run.py   the options of a run: which model, where pictures go, ...
    kinds.py   what values they take                   rules.py   which don't go together, which have no effect

Imports nothing heavy, so that --help answers at once.
"""
from npdiffusion.settings.rules import NO_EFFECT, STEPS
from npdiffusion.settings.table import (
    ABOUT,
    GROUPS,
    IN_PYTHON,
    LARGEST_SIDE,
    MACHINE,
    MAKE,
    MAPS,
    ON_COMMAND_LINE,
    PREDICTION_TYPES,
    RNGS,
    SETTINGS,
    SPACINGS,
    SYNTAXES,
    TILING,
    Request,
    Setting,
    SettingError,
    check_typed,
    is_picture,
    several,
)

__all__ = ["ABOUT", "GROUPS", "IN_PYTHON", "LARGEST_SIDE", "MACHINE", "MAKE", "MAPS", "NO_EFFECT", "ON_COMMAND_LINE",
           "PREDICTION_TYPES", "RNGS", "SETTINGS", "SPACINGS", "STEPS", "SYNTAXES", "TILING", "Request", "Setting",
           "SettingError", "check_typed", "is_picture", "several"]
