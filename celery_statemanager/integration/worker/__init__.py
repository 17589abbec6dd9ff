"""Run in a worker's main process: lease, sweep, outcomes that only it sees."""
