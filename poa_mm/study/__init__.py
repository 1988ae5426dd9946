"""Is POA worth it? Networks pre-trained in one run against the same networks pre-trained by themselves."""

from .evidence import Entry, read_evidence, summarise, write_evidence
from .report import write_report
from .rows import ROWS, Row, Unit, plan
from .schedule import run_study

__all__ = [
    'ROWS',
    'Entry',
    'Row',
    'Unit',
    'plan',
    'read_evidence',
    'run_study',
    'summarise',
    'write_evidence',
    'write_report',
]
