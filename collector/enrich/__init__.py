"""What records are told beside what was counted: names for addresses."""
