"""Generated cohorts: pyramidal H&E-like slides of any size with planted lesions and decoys."""
