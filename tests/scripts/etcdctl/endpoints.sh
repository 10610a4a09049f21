# What members say of themselves: health, status, hashes; alarms, defragmentation, version.
e put a 1
members() { echo "$ALL" | tr , '\n' | wc -l; }
await '[ "$(etcdctl --endpoints="$ALL" endpoint status -w json | grep -o "\"revision\":$(revision)" | wc -l)" = "$(members)" ]'
e version
e endpoint health
unordered at ALL endpoint health
health() { at ALL endpoint health -w json | tr '{' '\n' | sed 's/[],]*$//'; }
unordered health
[ "$(members)" != 3 ] || unordered e endpoint health --cluster
at NOBODY --command-timeout=1s endpoint health
unordered at ALL endpoint status
unordered at ALL endpoint status -w table
e endpoint status -w json
e endpoint status -w fields
[ "$(members)" != 3 ] || unordered e endpoint status --cluster
at NOBODY endpoint status
unordered at ALL endpoint hashkv
echo "different hashes: $(etcdctl --endpoints="$ALL" endpoint hashkv | awk '{ print $2 }' | sort -u | wc -l)"
e endpoint hashkv --rev=99
e endpoint hashkv -w json
e alarm list
e alarm disarm
# Newer releases of etcd put a header into it.
e alarm list -w json | sed 's/^{"header":.*}}$/{}/'
e defrag
unordered at ALL defrag
[ "$(members)" != 3 ] || unordered e defrag --cluster
