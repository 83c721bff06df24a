"""Many small computations: in parallel, with time limits, results kept between runs. Free of torch."""
