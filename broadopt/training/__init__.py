"""One run: built from its config, trained by the loop, evaluated, and concluded with a result."""
