"""Parts of predict.py that stand alone: the files it finds and the table it writes."""
