"""The parent interface by files: commands in, answers and events out, in folders both sides can see."""
