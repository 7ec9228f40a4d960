# What root.py runs in the guest and on the host, in the same root file system: the output must be the same. No time, no randomness, no
# floating-point digits beyond what every libm agrees on.
export LC_ALL=C PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/tmp PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 PERL_HASH_SEED=0
cd /tmp || exit 1

cat >prog.c <<'END'
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static uint64_t s = 88172645463325252ull;
static uint64_t next(void) { s ^= s << 13; s ^= s >> 7; s ^= s << 17; return s; }
static int compare(const void *a, const void *b) { uint64_t x = *(uint64_t *)a, y = *(uint64_t *)b; return x < y ? -1 : x > y; }
int main(void)
{
	enum { N = 200000 };
	static uint64_t v[N];
	double sum = 0, matrix[60][60], product[60][60] = { 0 };
	uint64_t h = 0;
	for (int i = 0; i < N; i++)
		v[i] = next();
	qsort(v, N, sizeof(*v), compare);
	for (int i = 0; i < N; i++)
		h = h * 31 + v[i] % (i + 7);
	for (int i = 0; i < 60; i++)
		for (int j = 0; j < 60; j++)
			matrix[i][j] = (i * 7 + j * 3) % 11 - 5;
	for (int i = 0; i < 60; i++)
		for (int j = 0; j < 60; j++)
			for (int k = 0; k < 60; k++)
				product[i][j] += matrix[i][k] * matrix[k][j];
	for (int i = 1; i < 2000; i++)
		sum += sin(i) / sqrt(i) + pow(i, -1.5);
	printf("%llx %.0f %.10f\n", (unsigned long long)h, product[13][17], sum);
	return 0;
}
END
for options in -O0 -O2 "-O3 -mavx2 -mfma -ffp-contract=off" "-O2 -m64 -msse4.2 -fPIC"; do
	gcc $options -c prog.c -o prog.o && sha256sum <prog.o
	gcc $options prog.c -o prog -lm && ./prog
done

perl -e '
	my %h; $h{$_ * 7919 % 10007} .= chr(65 + $_ % 26) for 1 .. 60000;
	my @k = sort { $a <=> $b } keys %h;
	print scalar(@k), " ", length(join "", map { $h{$_} } @k), " ", unpack("%32C*", join "", map { "$_$h{$_}" } @k), "\n";
	my $t = "the quick brown fox jumps over the lazy dog " x 2000; my $n = 0;
	$n++ while $t =~ /\b(\w)(\w*?)(o)\w*\b/g; (my $u = $t) =~ s/(\w+) (\w+)/$2 $1/g; print "$n ", unpack("%32N*", $u), "\n";
	printf "%.10g %s\n", atan2(1, 1) * 4, join ",", map { sprintf "%x", $_ ** 3 } 1 .. 20;'

python3 - <<'END'
import hashlib, json, re, struct
a, b = 0, 1
for _ in range(20000):
    a, b = b, a + b
print(hashlib.sha256(hex(a).encode()).hexdigest(), pow(3, 10**300 + 7, 2**521 - 1) % 10**30)
d = {str(i): [i * i, i / 8, None, {'k': str(i)[::-1]}] for i in range(5000)}
text = json.dumps(d, sort_keys=True)
print(len(text), hashlib.md5(text.encode()).hexdigest(), json.loads(text) == d)
print(len(re.findall(r'(\d)\1', text)), sum(struct.unpack('<%dH' % 500, bytes(range(250)) * 4)))
class Tree:
    def __init__(self, n): self.kids = [Tree(n - 1), Tree(n - 1)] if n else []
    def count(self): return 1 + sum(k.count() for k in self.kids)
print(Tree(14).count(), sorted(set(x * x % 1009 for x in range(5000)))[-5:])
try:
    1 // 0
except ZeroDivisionError as e:
    print(e)
END

lua5.4 -e '
	local function fib(n) return n < 2 and n or fib(n - 1) + fib(n - 2) end
	local t = {} for i = 1, 50000 do t[i] = (i * 7919) % 65537 end table.sort(t)
	local s = {} for i = 1, 3000 do s[#s + 1] = string.format("%05d%x", t[i], i) end
	print(fib(24), t[1], t[#t], #table.concat(s), (string.gsub(table.concat(s), "%d%d%x", "")):len(), 7 // 2, -7 % 3, 2^53 | 1)'

seq 1 200000 >numbers
for digest in sha1 sha256 sha512 sha3-256 blake2b512 md5; do
	openssl dgst -$digest numbers
done
for cipher in aes-128-cbc aes-256-ctr camellia-256-cbc chacha20; do
	openssl enc -$cipher -K 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f -iv 0f0e0d0c0b0a09080706050403020100 \
		-in numbers -out secret 2>/dev/null
	sha256sum <secret
	openssl enc -d -$cipher -K 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f -iv 0f0e0d0c0b0a09080706050403020100 \
		-in secret 2>/dev/null | cmp - numbers && echo same
done
openssl genrsa -out key.pem 1024 2>/dev/null && openssl dgst -sha256 -sign key.pem -out signature numbers &&
	openssl rsa -in key.pem -pubout -out public.pem 2>/dev/null && openssl dgst -sha256 -verify public.pem -signature signature numbers
openssl prime -hex 1fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff | tail -c 10

for level in 1 6; do
	xz -$level -T1 -c numbers >numbers.xz && sha256sum <numbers.xz && xz -dc numbers.xz | cmp - numbers && echo same
done
gzip -9nc numbers >numbers.gz && sha256sum <numbers.gz && gunzip -c numbers.gz | cmp - numbers && echo same

i=0
while [ $i -lt 100 ]; do
	(exit $((i % 7))) || sum=$((sum + $?))
	i=$((i + 1))
done
echo "forks: $sum"
sort -rn numbers | awk '{ s = (s * 31 + $1) % 1000003 } END { print s }'
find /usr/share/perl /usr/lib/python3* -type f ! -name '*.pyc' | LC_ALL=C sort | sha256sum
tar -cf - -C / --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner usr/include 2>/dev/null | sha256sum
