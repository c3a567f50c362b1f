"""What can be timed on the device at hand: one file a class of measurement, torch imported when something is timed."""
