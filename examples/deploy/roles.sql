-- Two database roles: one migrates, the other runs jobs. Run this once, with psql 15 or newer, as an administrator:
--
--   OWNER_PASSWORD=... WORKER_PASSWORD=... psql -d shop -f roles.sql
--
-- shop_owner creates the tables: only `pgcron migrate` needs its password. shop_worker can neither alter nor empty them.
-- After the first `pgcron migrate`, and when release notes require it, run as shop_owner:
--
--   select pgcron.allow('shop_worker', 'worker');
\getenv owner_password OWNER_PASSWORD
\getenv worker_password WORKER_PASSWORD
create role shop_owner login password :'owner_password';
create role shop_worker login password :'worker_password';
grant create on database :"DBNAME" to shop_owner;
