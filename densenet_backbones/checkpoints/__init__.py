"""Reading weights safely and mapping their names between libraries."""
