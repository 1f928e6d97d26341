"""Trunks: the first epochs that runs have in common, trained by one of them and begun from by the others (trunk=share)."""
