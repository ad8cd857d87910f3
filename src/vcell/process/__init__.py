"""What a process of ours owes others: one at a time where that matters, progress that can be seen, and a clean stop."""
