"""One file for each study; `stitchkern.studies.study` says how one is written."""
