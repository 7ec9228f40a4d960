#!/usr/bin/env python3
# timeout: 180
"""libdoppel as another program finds it: installed, by pkg-config, shared and static, with nothing to be seen but its API."""
import glob, os, subprocess, sys

from tiny import POWER_OFF, Checks, kernel, say

c = Checks()
BUILD = os.environ.get('DOPPEL_BUILD', os.path.join(os.path.dirname(__file__), '../../build'))
dest = os.path.join(c.dir, 'dest')

PROGRAM = r'''
#include <doppel/doppel.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	doppel_error error;
	doppel_end end;
	doppel_stats stats;
	doppel_config *config = doppel_config_new();

	doppel_config_kernel(config, "/nonexistent");
	if (doppel_vm_create(config, &error) || !error.text[0])
		return 10;
	doppel_config_kernel(config, argv[1]);
	doppel_config_memory(config, 16 << 20);
	doppel_config_cpus(config, 2);
	doppel_config_console(config, argv[2]);
	/* Two at a time: one runs to its end, the other is stopped before it begins. */
	doppel_vm *vm = doppel_vm_create(config, &error), *other = doppel_vm_create(config, &error);
	doppel_config_free(config);
	if (!vm || !other)
		return 11;
	doppel_vm_stop(other);
	if (doppel_vm_run(other, &end) || end.reason != DOPPEL_END_STOPPED)
		return 12;
	if (doppel_vm_run(vm, &end) || end.reason != DOPPEL_END_POWER_OFF)
		return 13;
	doppel_vm_stats(vm, &stats, sizeof(stats));
	if (!stats.exits_io || doppel_vm_report(vm)[0])
		return 14;
	puts(doppel_vm_description(vm));
	doppel_vm_destroy(vm);
	doppel_vm_destroy(other);
	doppel_vm_destroy(NULL);
	return 0;
}
'''


def shell(*args, env=None):
    r = subprocess.run(args, capture_output=True, text=True, env=env, timeout=120)
    return None if r.returncode == 0 else '%s: status %d: %s' % (' '.join(args[:2]), r.returncode, r.stdout + r.stderr), r.stdout


def installed(pattern):
    return (glob.glob(os.path.join(dest, '**', pattern), recursive=True) or [''])[0]


why, _ = shell('meson', 'install', '-C', BUILD, '--no-rebuild', '--quiet', '--destdir', dest)
c.check('install', why)
for name in ['doppel.h', 'doppel.pc', 'libdoppel.so', 'libdoppel.a', 'doppel', 'doppel.1*']:
    c.check('installs-' + name.strip('*'), None if installed(name) else 'not there')
lib = os.path.dirname(installed('libdoppel.so'))
_, out = shell('nm', '-D', '--defined-only', installed('libdoppel.so'))
others = [s for s in (line.split()[-1] for line in out.splitlines()) if not s.startswith('doppel_')]
c.check('symbols', 'also exports %s' % others if others or not out else None)

source = os.path.join(c.dir, 'program.c')
open(source, 'w').write(PROGRAM)
env = dict(os.environ, PKG_CONFIG_PATH=os.path.dirname(installed('doppel.pc')), PKG_CONFIG_SYSROOT_DIR=dest)
guest = kernel(c.dir, 'guest', say('hello') + POWER_OFF)
for kind, flags in [('shared', []), ('static', ['--static'])]:
    _, words = shell('pkg-config', *flags, '--cflags', '--libs', 'doppel', env=env)
    words = words.split()
    if kind == 'static':
        words = [w.replace('-ldoppel', '-l:libdoppel.a') for w in words]
    program, out = os.path.join(c.dir, kind), os.path.join(c.dir, kind + '.out')
    why, _ = shell('gcc', '-Wall', '-Wextra', '-Werror', '-Wno-unused-parameter', source, '-o', program, *words)
    c.check('links-' + kind, why)
    why, text = shell(program, guest, 'file=' + out, env=dict(os.environ, LD_LIBRARY_PATH=lib))
    if not why and ('2 CPUs' not in text or open(out).read() != 'hello'):
        why = 'wrong output: ' + text
    c.check('runs-' + kind, why)
sys.exit(c.end())
