import pytest, torch, forks

@pytest.mark.parametrize("overrides", [{}, {"training.optimizer":"adafactor"}, {"contexts":["auto"], "trajectory.count":4},{"trajectory.source":"student"}])
@pytest.mark.parametrize("shard", [False, True])
def test_x(tmp_path, overrides,shard):
    (alone,) = forks.run(1, tmp_path/"1", forks.train, overrides)
    if isinstance(alone, BaseException): raise alone
    for n in (2,4):
        rs = forks.run(n, tmp_path / str(n), forks.train, overrides, shards_optimizer=shard)
        for r in rs:
            if isinstance(r, BaseException): raise r
            c,o,s=r["change"],r["outcome"],r["samples"]
            assert all(torch.equal(c[k],rs[0]["change"][k]) for k in c)
            num=sum((c[k]-alone["change"][k]).square().sum() for k in c)**.5; den=sum(v.square().sum() for v in alone["change"].values())**.5
        sa=alone["samples"]
        print(n, 'rel', float(num/den), 'samples', float((s["x"]-sa["x"]).norm()/sa["x"].norm()),float((s["target"]-sa["target"]).norm()/sa["target"].norm()), torch.equal(s["condition"],sa["condition"]), [a-b for a,b in zip(o.losses, alone["outcome"].losses)], o.probes.share, alone["outcome"].probes.share, r["evaluations"],alone["evaluations"])
        print(rs[0]["state"]["update"]['optimizer'].keys()==alone["state"]["update"]['optimizer'].keys())
