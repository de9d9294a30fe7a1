"""One module per job: each line of its main function is one station of the job."""
