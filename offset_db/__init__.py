"""The memory of kcompat: which source said what of each field, for each kernel build."""
