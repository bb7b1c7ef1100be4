"""From the documents of people and programs to the records of the core: plans, requests, success criteria.

Pure: text and plain values come in, records or one `BadInput` go out. No file is opened here and no clock is read.
"""
