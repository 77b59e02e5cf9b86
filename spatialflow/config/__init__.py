"""Every configuration key of the project, and how a config file is read."""

from .keys import add_spatialflow_config
from .load import (
    CLASS_COUNT_UNSET,
    check_device,
    class_count_is_unset,
    config_dir,
    load_config,
    read_key,
    takes_original_images,
)

__all__ = [
    "CLASS_COUNT_UNSET",
    "add_spatialflow_config",
    "check_device",
    "class_count_is_unset",
    "config_dir",
    "load_config",
    "read_key",
    "takes_original_images",
]
