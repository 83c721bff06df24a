"""What crystals are worth: one folder per question, in each `section.py` with its numbers, beside what works them out.

`evaluate.py` runs the parts, `parallel/` spreads their work over processes, `report/` writes what they found. Modules
that worker processes import are free of torch and say so.
"""
