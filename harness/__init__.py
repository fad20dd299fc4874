"""What is asked: cases and how they are drawn, how numbers are compared, one test module per property, the subjects
that ship with the audit, and the pytest plugin that turns test outcomes into claims."""
