"""How well known crystals with exchanged elements do what a model is asked to do."""
