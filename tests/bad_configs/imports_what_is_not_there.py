"""A config that cannot be imported."""

import nowhere

get_config = nowhere.get_config
