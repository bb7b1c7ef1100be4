"""The simulated world: the real core, scheduler, kernel, codec and duties among pretended machines, on time that only events move."""
