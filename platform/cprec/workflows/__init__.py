"""One module per job; its main function reads as the stages of the job, in order."""
