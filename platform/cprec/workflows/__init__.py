"""One module per job; its main function reads as the stations of the job, in order."""
