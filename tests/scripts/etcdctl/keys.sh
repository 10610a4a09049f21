# put, get and del, with every flag that they have.
e put a 1
e put b 2 --prev-kv
e put a 3 --prev-kv
e put a 4 --ignore-lease
e put nothing-yet --ignore-value
e put a --ignore-value
e put nothing-yet 1 --ignore-lease
e put a 1 --lease=77
e put '' 1
e put
e put -- -dash '-value'
feed 'from standard input' put fed
e get a
e get fed
e get -- -dash
e get nothing-yet
e get ''
e get
for n in 1 2 3 4 5; do e put "k/$n" "v$((6 - n))"; done
e put k/2 v9
e get --prefix k/
e get --prefix k/ --keys-only
e get --prefix k/ --print-value-only
e get --prefix k/ --limit=2
e get --prefix k/ --order=DESCEND
e get --prefix k/ --order=DESCEND --limit=1
e get --prefix k/ --sort-by=VALUE --order=ASCEND
e get --prefix k/ --sort-by=VERSION --order=DESCEND --keys-only
e get --prefix k/ --sort-by=CREATE --order=DESCEND --keys-only
e get --prefix k/ --sort-by=MODIFY --order=ASCEND --keys-only
e get --prefix k/ --sort-by=KEY --order=ASCEND --keys-only
e get --prefix k/ --sort-by=NONSENSE
e get --prefix k/ --order=NONSENSE
e get k/2 k/4
e get k/4 k/2
e get --from-key k/4
e get --from-key k/4 --prefix
e get k/1 k/3 --prefix
e get --prefix ''  --keys-only
e get --from-key '' --keys-only --limit=3
e get k/2 --rev=9
e get k/2 --rev=5
e get k/2 --rev=99
e get k/2 --rev=-1
e get k/1 --consistency=s
e get k/1 --consistency=l
e get k/1 --consistency=x
e get k/1 --hex
e get k/1 -w fields
e get k/1 -w json
e get --prefix k/ -w json --limit=2
e get k/1 -w table
e get k/1 -w nonsense
printf '$ etcdctl get k/1 -w protobuf\n'; etcdctl get k/1 -w protobuf | wc -c | awk '{ print ($1 > 20) ? "bytes" : "nothing" }'
e put k/1 v6 -w json
e put k/1 v7 -w fields --prev-kv
e put k/1 v8 --prev-kv -w json
e del k/1
e del k/1
e del k/2 --prev-kv
e del k/3 k/5 --prev-kv
e del --prefix k/ -w json
e del --prefix nothing/
e del a z --prefix
e del --from-key b --prev-kv -w fields
e del
e get --from-key '' --keys-only
