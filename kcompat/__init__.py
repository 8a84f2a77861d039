"""kcompat knows what a kernel is and where the fields of its structs lie."""
