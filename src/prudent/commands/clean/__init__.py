"""``prudent clean`` step by step: read, apply rules, judge by strength, repair, prove, write for a person's review."""
