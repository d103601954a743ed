"""Wrong answers to the graded assignments: by assignment and task, the answer cells as text."""
