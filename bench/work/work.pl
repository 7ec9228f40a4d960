# Hashes, regular expressions and sorting: N rounds.
use strict;
use warnings;

for my $round (1 .. $ARGV[0]) {
	my %count;
	my $text = join ' ', map { sprintf 'w%x', $_ * 2654435761 % 2048 } 1 .. 8000;
	$count{$1}++ while $text =~ /\b(w[0-9a-f]*[13579bdf])\b/g;
	my @order = sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
	(my $other = $text) =~ s/w(\d)/$1-/g;
	die "$round" unless @order && length $other;
}
