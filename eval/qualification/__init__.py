"""Can a judge tell better from worse? Human preferences and damaged documents."""
