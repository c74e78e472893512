"""What happens when everything breaks: the process at every await, the servers at any moment, the code on purpose."""
