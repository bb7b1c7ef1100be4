"""Wire formats as pure code: bytes in, messages out. Nothing here opens, reads or waits for anything."""
