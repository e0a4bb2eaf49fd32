"""The data of training: rows of files, tables and the Hub, as tokens that are trained or not, on disk."""
