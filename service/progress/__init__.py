"""How far a job is: the record, the file that a job appends records to, and a progress bar that writes there too."""
