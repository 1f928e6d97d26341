"""The networks of both tables, one file a family; Hydra's `_target_` is their registry."""
