# Transactions: from standard input, interactively, with every comparison and every failure.
e put a 1
e put b 2
feed 'value("a") = "1"\n\nput c 3\nget c\ndel b\n\nget a\n\n' txn
feed 'value("a") = "2"\n\nput c 4\n\nget a\nget c\n\n' txn
feed 'version("a") > "0"\ncreate("a") = "2"\nmod("a") < "99"\nvalue("a") > "0"\n\nget a\n\n\n' txn
feed 'version("no") = "0"\ncreate("no") = "0"\nmod("no") = "0"\n\nput no yes\n\n\n' txn
feed 'version("no") = "0"\n\nput no again\n\nget no\n\n' txn
feed 'value("a") != "1"\n\n\nget a\n\n' txn
feed 'value("a") = "1"\n\nput a 2\nput a 3\n\n\n' txn
feed '\nput a 4\ndel a\n\n\n' txn
feed '\nput x 1\nput y 2\nget --prefix x\nget x z\n\n\n' txn
feed '\nput q "several words"\nget q\n\n\n' txn
feed '\ndel --prefix x --prev-kv\n\n\n' txn
feed '\n\n\n' txn
feed 'nonsense\n\n\n' txn
feed 'mod("a") = "abc"\n\n\n\n' txn
feed '\nfly away\n\n\n' txn
feed '\nput leased 1 --lease=77\n\n\n' txn
feed '\nget a --rev=99\n\n\n' txn
feed 'mod("a") > "0"\n\nput a 5\nget a\n\nget a\n\n' txn -w json
feed 'mod("a") > "0"\n\nput a 6\nget a\n\nget a\n\n' txn -w fields
feed 'mod("a") > "0"\n\nput a 7\n\n\n\n' txn --interactive
e get --from-key ''
e txn too many arguments
