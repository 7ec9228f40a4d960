#!/usr/bin/env python3
# timeout: 300
"""Random bytes as a kernel, at privilege level 0: the machine ends in a triple fault, or runs on until it is told to end, and the monitor never
fails. A seed in SEED repeats one."""
import os, random, signal, subprocess, sys
from tiny import DOPPEL, Checks, kernel, stack, BASE

# Turns paging on and goes to 64-bit mode: tables at 0x10000 map the first GiB by 2 MiB pages; then the junk, as 64-bit code.
LONG_MODE = bytes.fromhex(
    'fa'                              # cli
    'bf00000100 31c0 b900080000 f3ab'  # clear 0x10000 .. 0x11fff
    'c7050000010007100100'            # PML4[0] = 0x11007
    'c7050010010087000000'            # PDPT[0] = 1 GiB page, user too
    'b800000100 0f22d8'               # cr3
    '0f20e0 0da0060100 0f22e0'        # cr4: PAE, PGE, OSFXSR, OSXMMEXCPT; FSGSBASE
    'b9800000c0 0f32 0d01090000 0f30'  # efer: SCE, LME, NXE
    '0f20c0 0d00000180 0f22c0'.replace(' ', ''))  # cr0: PG, WP


def gdt_and_jump():
    """lgdt, then a far jump into the 64-bit segment; both tables follow the code."""
    code_len = 7 + 7
    at = BASE + 16 + 5 + len(LONG_MODE)
    gdt = at + code_len
    table = bytes(8) + bytes.fromhex('ffff0000009aaf00') + bytes.fromhex('ffff00000092cf00')
    pointer = gdt + len(table)
    target = pointer + 6
    code = b'\x0f\x01\x15' + pointer.to_bytes(4, 'little') + b'\xea' + target.to_bytes(4, 'little') + b'\x08\x00'
    return code + table + (len(table) - 1).to_bytes(2, 'little') + gdt.to_bytes(4, 'little')


def junk(seed, n=24576):
    return random.Random(seed).randbytes(n)


def run(path):
    """Why the monitor did not behave, or None; and what it reported."""
    p = subprocess.Popen([DOPPEL, 'run', '--kernel', path, '--memory', '16M', '--console', 'none', '--quiet'], stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        out, _ = p.communicate(timeout=0.7)
    except subprocess.TimeoutExpired:
        p.terminate()
        try:
            out, _ = p.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            p.kill()
            p.communicate()
            return 'it does not end when told to', ''
    if p.returncode in (0, 3, 128 + signal.SIGTERM):
        return None, out.decode(errors='replace')
    return 'status %d: %s' % (p.returncode, out.decode(errors='replace')[-300:]), ''


ATTRIBUTES = {'32': 'attributes c09b', '64': 'attributes a09b'}  # of CS, in the report of a crash

c = Checks()
seeds = [int(os.environ['SEED'])] if 'SEED' in os.environ else range(60)
for mode, prologue in (('32', b''), ('64', LONG_MODE + gdt_and_jump())):
    bad, reached = None, False
    for seed in seeds:
        why, report = run(kernel(c.dir, 'junk', prologue + junk(seed)))
        bad = bad or why and 'seed %d: %s' % (seed, why)
        reached |= ATTRIBUTES[mode] in report
    c.check('junk_%s' % mode, bad or (None if reached else 'no run ended in %s-bit code' % mode))
sys.exit(c.end())
