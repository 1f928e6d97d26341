"""plan=true: what a run would do and cost, worked out without data and without training, and said in words."""
