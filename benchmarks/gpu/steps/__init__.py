"""What each step of the plan does, one file a step; all but `present`, which says what is there to be run."""
