"""Pure functions on arrays that every layer above shares."""
