"""Where pictures come from: folders, parquet files, tar archives, runs, the hub."""
