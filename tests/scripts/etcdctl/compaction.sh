# Compaction, and what is left of the past after it.
for n in 1 2 3 4; do e put k "$n"; done
e put gone 1
e del gone
e get k --rev=3
e compaction 4
e get k --rev=3
e get k --rev=4
e get k
e get gone --rev=6
e compaction 4
e compaction 99
e compaction 0
e compaction -- -1
e compaction
e compaction nonsense
e compaction 6 --physical
e get gone --rev=6
e put k 5
e compaction "$(revision)" --physical
e get k
